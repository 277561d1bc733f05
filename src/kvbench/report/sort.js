"use strict";

function sortBy(table, heads, index) {
  const head = heads[index];
  const isDescending = head.getAttribute("aria-sort") === "ascending";
  const isNumber = head.classList.contains("number");
  const key = (row) => {
    const cell = row.cells[index];
    if (isNumber) return "value" in cell.dataset ? Number(cell.dataset.value) : null;
    return cell.textContent === "-" ? null : cell.textContent;
  };
  const keyed = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // what says nothing stays below
    const order = isNumber ? a - b : a.localeCompare(b, "en", { numeric: true });
    return isDescending ? -order : order;
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
  for (const other of heads) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    head.querySelector("button").addEventListener("click", () => sortBy(table, heads, index));
  });
}
