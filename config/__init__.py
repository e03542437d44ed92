"""Settings: schema, sources and their order, provenance, and changes while running.

Order, later ones win: defaults in the code, {cluster,nodes,models,network}.yaml, environment
(MLXC_SECTION__KEY), `--set key=value` and the short forms --model and --port, runtime changes of dynamic keys.
"""

from config.access import AccessConfig
from config.cli import add_arguments, from_arguments, render
from config.digests import file_of, settings_digests
from config.errors import ConfigError
from config.gateway import ApiGatewayConfig
from config.models import DEMO, LayerRange, ModelConfig, Shard
from config.nodes import NodeConfig, Ports
from config.schema import (
    ClusterConfig,
    Config,
    CoordinatorConfig,
    NetworkConfig,
    SchedulerConfig,
)
from config.settings import Row, Settings, load
from config.sources import PLAIN_VARIABLES

__all__ = [
    "DEMO",
    "PLAIN_VARIABLES",
    "AccessConfig",
    "ApiGatewayConfig",
    "ClusterConfig",
    "Config",
    "ConfigError",
    "CoordinatorConfig",
    "LayerRange",
    "ModelConfig",
    "NetworkConfig",
    "NodeConfig",
    "Ports",
    "Row",
    "SchedulerConfig",
    "Settings",
    "Shard",
    "add_arguments",
    "file_of",
    "from_arguments",
    "load",
    "render",
    "settings_digests",
]
