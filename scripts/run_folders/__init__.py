"""What is in the folders of searches, for check_results.sh and monitor_progress.sh; needs nothing but Python."""
