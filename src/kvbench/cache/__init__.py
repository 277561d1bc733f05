"""What every cache method shares: storage, the doors into transformers, the one hot path."""
