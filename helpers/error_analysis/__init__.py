"""05: what is wrong with the detections, and what would gain most?

In come COCO detections and the ground truth; out go a table with a row per error, each type's price in AP50, figures,
pictures and sentences. Begin with ``tide`` (what each prediction is), then ``analysis`` (the tables made of it).
"""
