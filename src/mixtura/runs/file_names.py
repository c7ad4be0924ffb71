"""Names of files in a run's folder that are read from elsewhere too."""

RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
