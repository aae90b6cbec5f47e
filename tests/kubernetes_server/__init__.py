"""An API server that keeps to the documented behaviour of Kubernetes as far as our adapter can notice."""

from kubernetes_server.server import Fault, KubernetesServer

__all__ = ["Fault", "KubernetesServer"]
