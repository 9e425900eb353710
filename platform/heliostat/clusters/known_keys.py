"""Keys of cluster files that Ray hands on unread, so that it lets every typing error pass.

From the code of Ray's node providers, and for machines from the clouds' own references: EC2's RunInstances and Compute
Engine's instances.insert. A key that is missing here is a warning, not an error: the clouds add some.
"""

from __future__ import annotations

_COMMON = frozenset(
    {"type", "use_internal_ips", "use_external_head_ip", "disable_node_updaters", "cache_stopped_nodes"}
)

PROVIDER: dict[str, frozenset[str]] = {
    "aws": _COMMON | {"region", "availability_zone", "key_pair", "security_group", "cloudwatch", "aws_credentials"},
    "gcp": _COMMON | {"region", "availability_zone", "project_id", "gcp_credentials"},
    "local": _COMMON | {"head_ip", "external_head_ip", "worker_ips", "coordinator_address"},
}
"""Keys of ``provider``, by its type."""

NEEDED: dict[str, tuple[str, ...]] = {
    "aws": ("region",),
    "gcp": ("region", "availability_zone", "project_id"),
    "local": ("head_ip", "worker_ips"),
}
"""Keys of ``provider`` without which the cluster cannot be started."""

NODE_CONFIG: dict[str, frozenset[str]] = {
    "aws": frozenset(
        {
            "BlockDeviceMappings", "CapacityReservationSpecification", "CpuOptions", "CreditSpecification",
            "EbsOptimized", "EnclaveOptions", "HibernationOptions", "IamInstanceProfile", "ImageId",
            "InstanceInitiatedShutdownBehavior", "InstanceMarketOptions", "InstanceType", "KeyName", "LaunchTemplate",
            "LicenseSpecifications", "MaintenanceOptions", "MetadataOptions", "Monitoring", "NetworkInterfaces",
            "Placement", "PrivateDnsNameOptions", "SecurityGroupIds", "SecurityGroups", "SubnetId", "SubnetIds",
            "TagSpecifications", "UserData",
        }
    ),
    "gcp": frozenset(
        {
            "advancedMachineFeatures", "canIpForward", "confidentialInstanceConfig", "deletionProtection",
            "description", "disks", "displayDevice", "guestAccelerators", "hostname", "labels", "machineType",
            "metadata", "minCpuPlatform", "networkInterfaces", "networkPerformanceConfig", "params",
            "privateIpv6GoogleAccess", "reservationAffinity", "resourcePolicies", "scheduling", "serviceAccounts",
            "shieldedInstanceConfig", "tags",
            "acceleratorType", "runtimeVersion", "acceleratorConfig", "networkConfig", "schedulingConfig",
        }
    ),
}  # fmt: skip
"""Keys of a node type's ``node_config``, by the provider's type; the last line of Compute Engine's is that of TPUs."""

NODE_TYPE = frozenset(
    {
        "node_config", "min_workers", "max_workers", "idle_timeout_s", "priority", "resources", "labels",
        "initialization_commands", "worker_setup_commands", "docker",
    }
)  # fmt: skip
"""Keys of a node type."""

RAY_JOB = frozenset(
    {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
        "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
        "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes",
        "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
    }
)  # fmt: skip
"""Keys of a RayJob's ``spec`` (KubeRay 1.7)."""

RAY_CLUSTER = frozenset(
    {
        "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
        "headGroupSpec", "headServiceAnnotations", "historyServerOptions", "managedBy", "networkPolicy",
        "rayVersion", "suspend", "tlsOptions",
        "upgradeStrategy", "workerGroupSpecs",
    }
)  # fmt: skip
"""Keys of a RayCluster's ``spec``."""

WORKER_GROUP = frozenset(
    {
        "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "priority",
        "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template",
    }
)  # fmt: skip
"""Keys of a worker group."""

HEAD_GROUP = frozenset(
    {
        "enableIngress",
        "headService",
        "ingressOptions",
        "labels",
        "rayStartParams",
        "resources",
        "serviceType",
        "template",
    }
)
"""Keys of the head group."""

SLURM = frozenset(
    {
        "account", "array", "begin", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency",
        "error", "exclude", "exclusive", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hint", "hold",
        "input", "job-name", "licenses", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "mincpus",
        "no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "overcommit",
        "parsable", "partition", "qos", "requeue", "reservation", "signal", "switches", "time", "time-min", "tmp",
        "wait", "wckey",
    }
)  # fmt: skip
"""Long options of sbatch."""
