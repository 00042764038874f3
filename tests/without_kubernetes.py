"""Snakemake, called with its own options, and a Kubernetes client that writes jobs to jobs.json, not to a cluster.

The executor's own code builds the jobs. Each ends at once, and what its rule promises is made as an empty file.
The first training is reported as failed.
"""

import asyncio
import json
import sys
from types import SimpleNamespace
from unittest import mock

import kubernetes
import snakemake_executor_plugin_kubernetes as plugin
from snakemake.cli import main

written, failed = [], []


class Batch:
    def create_namespaced_job(self, namespace, body):
        written.append(kubernetes.client.ApiClient().sanitize_for_serialization(body))

    def read_namespaced_job_status(self, name, namespace):
        lost = failed[:1] == [name]
        return SimpleNamespace(status=SimpleNamespace(failed=int(lost), succeeded=int(not lost)))

    def delete_namespaced_job(self, *_, **__):
        pass


def run_job(executor, job, submit=plugin.Executor.run_job):
    submit(executor, job)
    written[-1]["rule"] = job.rule.name
    if job.rule.name == "train":
        failed.append(written[-1]["metadata"]["name"])
    for output in job.output:
        output.prepare()
        output.touch_or_create()


async def sleep(executor):
    await asyncio.sleep(0.05)


core = mock.Mock()
core.list_namespaced_pod.return_value.items = []
with (mock.patch("kubernetes.config.load_kube_config"), mock.patch("kubernetes.client.CoreV1Api", return_value=core),
      mock.patch("kubernetes.client.BatchV1Api", Batch), mock.patch.object(plugin.Executor, "run_job", run_job),
      mock.patch.object(plugin.Executor, "sleep", sleep)):
    try:
        main(sys.argv[1:])
    finally:
        with open("jobs.json", "w") as file:
            json.dump(written, file)
