"""The engine: models in, models out. It knows nothing of suites, results, MLflow or lm-eval."""
