"""Model registries: checking registered versions by a policy, and gating their promotion."""
