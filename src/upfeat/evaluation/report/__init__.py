"""A report in one HTML file: tables, cost against quality, pictures side by side."""

from upfeat.evaluation.report.content import (
    Cell,
    Column,
    Legend,
    Picture,
    PictureGroup,
    Published,
    Report,
    RowView,
    Scene,
    TableGroup,
    TableView,
)
from upfeat.evaluation.report.page import report_page
from upfeat.evaluation.tables.plots import Point

__all__ = [
    "Cell",
    "Column",
    "Legend",
    "Picture",
    "PictureGroup",
    "Point",
    "Published",
    "Report",
    "RowView",
    "Scene",
    "TableGroup",
    "TableView",
    "report_page",
]
