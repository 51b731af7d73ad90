"""Pictures of photos with boxes, for the notebooks, the browser and the report.

In comes a ``CocoIndex`` (or arrays) with boxes in pixels; out come Pillow pictures, JPEGs, matplotlib figures and the
widgets of a browser. Begin with ``draw.paint``, which draws every box of the project; ``grids`` lays pictures out.
"""
