"""Reports: tables, figures and an HTML page."""
