from __future__ import annotations

from dataclasses import replace

import pytest

from infra.platform import tenants
from tests.infra.platform.restricted import named, require_valid

TENANT = tenants.Tenant("vision-dev", "dev", ("vision",))


@pytest.fixture
def objects():
    return tenants.objects([TENANT], tenants.Settings())


def test_every_object_fits_its_schema_and_is_in_the_namespace(objects):
    require_valid(objects)
    assert {one["metadata"].get("namespace") for one in objects[1:]} == {"vision-dev"}


def test_the_namespace_admits_only_pods_of_the_restricted_standard(objects):
    labels = named(objects, "Namespace", "vision-dev")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


def test_the_namespace_says_whose_it_is(objects):
    labels = named(objects, "Namespace", "vision-dev")["metadata"]["labels"]
    assert (labels["modelwharf.io/team"], labels["modelwharf.io/environment"]) == ("vision", "dev")


def test_nothing_goes_in_or_out_that_no_policy_names(objects):
    spec = named(objects, "NetworkPolicy", "default-deny")["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": []}


def test_names_are_only_for_pods_that_say_they_need_them(objects):
    spec = named(objects, "NetworkPolicy", "dns")["spec"]
    assert spec["podSelector"] == {"matchLabels": tenants.NEEDS_DNS}
    assert {port["port"] for rule in spec["egress"] for port in rule["ports"]} == {53, 1053}


def test_a_team_looks_and_nobody_writes(objects):
    bindings = [one for one in objects if one["kind"].endswith("Binding")]
    assert [binding["roleRef"]["name"] for binding in bindings] == ["view"]
    assert [subject["name"] for subject in bindings[0]["subjects"]] == ["modelwharf:vision"]
    assert not [one for one in objects if one["kind"] in ("Role", "ClusterRole")]


def test_a_namespace_of_two_teams_is_seen_by_both():
    shared = tenants.objects([tenants.Tenant("shared-dev", "dev", ("b", "a"))], tenants.Settings())
    subjects = named(shared, "RoleBinding", "team-views")["subjects"]
    assert [subject["name"] for subject in subjects] == ["modelwharf:a", "modelwharf:b"]
    assert "modelwharf.io/team" not in named(shared, "Namespace", "shared-dev")["metadata"]["labels"]


def test_the_quota_is_the_given_one_and_opens_nothing_to_the_outside():
    found = tenants.objects([TENANT], tenants.Settings(tenants.Quota("4", "8Gi", 1, 10)))
    hard = named(found, "ResourceQuota", "quota")["spec"]["hard"]
    assert (hard["requests.cpu"], hard["requests.memory"], hard["pods"]) == ("4", "8Gi", "10")
    assert hard["requests.nvidia.com/gpu"] == "1"
    assert (hard["services.nodeports"], hard["services.loadbalancers"]) == ("0", "0")


def test_pods_that_name_no_limits_get_those_that_the_quota_asks_for(objects):
    limits = named(objects, "LimitRange", "defaults")["spec"]["limits"][0]
    assert limits["default"]["memory"] and limits["defaultRequest"]["memory"] and limits["defaultRequest"]["cpu"]


def test_the_default_account_has_no_credentials_of_the_cluster(objects):
    account = named(objects, "ServiceAccount", "default")
    assert account["automountServiceAccountToken"] is False
    assert "imagePullSecrets" not in account


def test_the_registrys_credentials_are_referred_to_and_never_held():
    found = tenants.objects([replace(TENANT, pull_secret="registry")], tenants.Settings())
    assert named(found, "ServiceAccount", "default")["imagePullSecrets"] == [{"name": "registry"}]
    assert not [one for one in found if one["kind"] == "Secret"]
