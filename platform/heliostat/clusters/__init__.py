"""Ray clusters: their files, what a job needs of them, and the way of a job to them and back."""
