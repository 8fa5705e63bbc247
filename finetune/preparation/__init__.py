"""The steps of `prepare`: reading and cleaning, deciding which rows stay and where, tokenizing, reporting."""
