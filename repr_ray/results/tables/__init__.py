"""One sheet of cells, shown in the terminal, as Markdown and as LaTeX; CSV and Parquet have the bare numbers."""

from repr_ray.results.tables.comparison import LEGEND, claims_sheet, comparison_sheet, failures_sheet
from repr_ray.results.tables.latex import SHORT, latex_sheet, write_latex
from repr_ray.results.tables.markdown import markdown, markdown_sheet, write_markdown
from repr_ray.results.tables.numbers import write_csv, write_parquet
from repr_ray.results.tables.sheet import NONE, Column, Entry, Row, Sheet, bounded, heading, rounded_time
from repr_ray.results.tables.terminal import print_comparison, print_sheet, print_text
