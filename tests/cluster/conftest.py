"""A cluster: the API server on loopback, and a real one where CLUSTER_KUBECONFIG names a kubeconfig for it.

On a real one all happens in a namespace of its own and on nodes made for the test, whose names begin with
`nvdriver-test-`, one test after another (-n0); what only OpenShift has comes as CRDs where the API has none.
Its user has to be a cluster-admin. A cluster with GPUs is left alone: controllers would serve them.
CLUSTER_RESTART, if it is set, is a command that restarts its API server.
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("lightkube") is None:  # the extra 'fleet' is for Python 3.11 and later
    collect_ignore_glob = ["*"]
else:
    from cluster_fleet import there
    from cluster_rig import cluster, openshift, real

    __all__ = ["cluster", "openshift", "real", "there"]
