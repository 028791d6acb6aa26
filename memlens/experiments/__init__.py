"""The papers' experiments: profiles, notebooks, printed tables, claims, and the headless run."""
