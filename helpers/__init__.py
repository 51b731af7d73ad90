"""The assignment's house. Read the core first, in this order; then the folder that bears your notebook's name.

files config            paths, one way to write a file, the parameters of a run
dataset boxes           COCO's records and photos; every conversion of boxes
augment collator        from a photo to a batch
model engine metrics    the detector and its class head; an epoch, a prediction; COCO's numbers
devices cli             hardware and precision; what the commands share

download  sanity  train  evaluate  error_analysis  synthetic_data      notebooks 01 to 06, each on the ones before
scenes  pictures                                                       the built-in data; one painter of boxes
families  export                                                       a checkpoint of any family, mended; as ONNX
grading  report  run                                                   on top: what holds, the pages, papermill
"""
