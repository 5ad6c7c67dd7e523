"""Shows a report: in the terminal, as one HTML page, in English or Chinese."""
