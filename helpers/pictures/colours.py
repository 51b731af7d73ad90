"""The colours of the project's pictures and figures, safe for colour-blind readers."""

BLUE, ORANGE, SKY, PURPLE, VERMILLION = "#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00"  # Okabe and Ito's
GREY = "#777777"
GREEN, RED = "#00875A", "#D50000"  # a bluish green, so that who sees no red or no green can tell it from this red
TRUTH, PREDICTED = GREEN, RED  # of boxes, everywhere; the report's style.css repeats these two
