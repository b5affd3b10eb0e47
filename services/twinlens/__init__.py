"""twinlens: one model seen through two lenses, the call and the pipeline, live on a Kafka stream."""

__version__ = "0.1.0"
