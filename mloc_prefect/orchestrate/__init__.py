"""Import paths that deployments and daemons of earlier versions have stored. The code lives in other packages."""
