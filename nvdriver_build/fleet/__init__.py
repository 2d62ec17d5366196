"""The cluster side: which kernels GPU nodes run and will run, what each needs, and the objects that give it
to them.

`facts` are values of what the API says, made by `inventory`; `plan` turns them into what has to be there;
`manifests` turns that into Kubernetes objects. All of it is pure: nothing here talks to a cluster.
"""
