"""All settings in one typed tree. `tree.py` has the tree, `kafka.py` its section `kafka`."""

from twinlens.settings.former_names import with_present_names
from twinlens.settings.kafka import SECRETS, KafkaSettings
from twinlens.settings.tree import (
    DEMO_MODEL,
    ENV_PREFIX,
    ONE_MODEL,
    OUTPUTS,
    BatchingSettings,
    CompareSettings,
    IntakeSettings,
    MonitorSettings,
    OutputSettings,
    PathSettings,
    PredictSettings,
    RawSettings,
    Settings,
    TopicSettings,
    asking_user,
    own_variables,
)

__all__ = [
    "DEMO_MODEL",
    "ENV_PREFIX",
    "ONE_MODEL",
    "OUTPUTS",
    "SECRETS",
    "BatchingSettings",
    "CompareSettings",
    "IntakeSettings",
    "KafkaSettings",
    "MonitorSettings",
    "OutputSettings",
    "PathSettings",
    "PredictSettings",
    "RawSettings",
    "Settings",
    "TopicSettings",
    "asking_user",
    "own_variables",
    "with_present_names",
]
