"""Models of other people's tools: their files in and out, and their code made to use ours."""
