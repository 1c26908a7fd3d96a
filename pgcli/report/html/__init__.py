"""HTML pages: charts as inline SVG, and templates that escape all text."""
