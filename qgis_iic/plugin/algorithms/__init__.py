"""The Processing algorithms: parameters become a job, the engine runs it, its output becomes layers."""
