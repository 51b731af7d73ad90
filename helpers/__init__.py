"""One module per stage of the assignment; a notebook imports what its stage needs."""
