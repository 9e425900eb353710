"""heliostat: landmark machine-learning papers as experiments on Ray. Everything here touches Ray, MLflow, files or a
terminal."""
