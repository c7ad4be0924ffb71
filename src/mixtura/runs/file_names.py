"""Names in a run's folder that other rooms read too."""

RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
