"""What keeps a cluster as its plan says: `apply` does one round, `watch` one after each burst of changes.

`api` is what is asked of a Kubernetes API, `client` that over HTTP; `view` what is known of the cluster, kept
by `following` it; `rounds` go from there to a plan, `acting` on it. Level-triggered: a round looks at what
is, and never at what it did before, so that it may end or begin anywhere.
"""
