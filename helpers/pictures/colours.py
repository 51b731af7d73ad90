"""The colours of the project's pictures and figures, safe for colour-blind readers."""

BLUE, ORANGE, SKY, PURPLE, GREY = "#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#777777"  # Okabe and Ito's, and a grey
TRUTH, PREDICTED = "#00A000", "#D50000"  # ground truth is green, predictions are red, everywhere in the project
