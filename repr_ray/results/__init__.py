"""From trial folders to tables and pictures. Reading order: store, compare, claims, tables, plots, html."""
