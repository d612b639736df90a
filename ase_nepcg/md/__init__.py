"""Dynamics: integrator, held sites, accumulation and the compiled loop that joins them with the forces of a NEP."""
