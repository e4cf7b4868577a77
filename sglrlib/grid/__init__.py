"""Many runs, here or on a cluster. Imports show, whose notebooks name the runs."""
