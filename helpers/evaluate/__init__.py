"""04: how good is the detector, and how sure are we?

In come a run's checkpoint and the validation split; out go its detections, COCO's numbers with intervals (metrics.json,
per_class.csv), curves and pictures. Begin with ``checkpoint`` (load, detect, record), then ``comparison``.
"""
