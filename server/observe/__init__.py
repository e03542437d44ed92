"""What the cluster shows of itself: metrics, requests, resources, alerts, timelines, events."""
