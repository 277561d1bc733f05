"""RULER: thirteen tasks that are made up of any text, with any tokenizer, at any length."""
