"""MLflow's tracking server and registry, over REST or through its own client."""
