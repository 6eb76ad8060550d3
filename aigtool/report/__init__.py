"""One self-contained HTML page from what the other commands wrote."""
