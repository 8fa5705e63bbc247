"""From raw rows to cleaned, split, tokenized rows."""
