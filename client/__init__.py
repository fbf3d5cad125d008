"""The site's program: policy, one local round and Flower's ClientApp."""
