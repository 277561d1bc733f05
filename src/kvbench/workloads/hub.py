"""Files of data sets on the hub, of one revision each."""

from __future__ import annotations

from pathlib import Path


def hub_file(
    dataset: str, revision: str, file: str, instead: str = "workload.path=<the file, or a folder of what is in it>"
) -> Path:
    """Return where a file of a data set lies on this machine, once it has been fetched.

    Args:
        dataset: name on the hub.
        revision: commit; what is fetched never changes.
        file: path within the data set.
        instead: setting that takes a file of this machine.

    Raises:
        ValueError: that says what to bring, if it is not here and cannot be fetched.
    """
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(dataset, file, repo_type="dataset", revision=revision))
    except (EntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise ValueError(
            f"{file} of the hub's data set {dataset} at revision {revision} is not in the local cache and cannot be "
            f"fetched ({type(error).__name__}). Where there is a network, `hf download {dataset} {file} --repo-type "
            f"dataset --revision {revision}` brings it; or set {instead}."
        ) from error
