"""Self-contained HTML pages, plots and reports."""
