"""The report: what the notebooks left in ``artifacts/`` comes in, whole, in part or damaged.

Out goes ``artifacts/report/``: ``index.html`` and a page per notebook, readable from a disk without a network or a
kernel. Begin with ``front_page.build_report``; nothing of an output reaches a page but through
``notebook_pages.clean``.
"""
