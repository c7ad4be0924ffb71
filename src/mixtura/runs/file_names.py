"""Names in a run's folder that code outside this package uses too."""

RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
