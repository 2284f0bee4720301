from __future__ import annotations

from infra.platform import dns
from tests.infra.platform.restricted import named, pods, require_hardened, require_valid

SETTINGS = dns.Settings("wharf.local/coredns@sha256:" + "d" * 64, "10.97.0.10", forward=("192.0.2.53",))
ALONE = dns.Settings(SETTINGS.image, SETTINGS.address)


def corefile(settings):
    return named(dns.objects(settings), "ConfigMap", "coredns")["data"]["Corefile"]


def test_objects_fit_their_schemas_and_pods_the_restricted_standard():
    require_valid(dns.objects(SETTINGS))
    require_hardened(dns.objects(SETTINGS))


def test_the_service_has_the_address_that_pods_are_told_and_leads_to_the_pod():
    objects = dns.objects(SETTINGS)
    service = named(objects, "Service", "kube-dns")["spec"]
    pod = named(objects, "Deployment", "coredns")["spec"]["template"]
    assert service["clusterIP"] == "10.97.0.10"
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    ports = {port["name"]: port for port in pod["spec"]["containers"][0]["ports"]}
    for port in service["ports"]:
        assert port["port"] == 53
        assert ports[port["targetPort"]]["protocol"] == port["protocol"]


def test_the_port_needs_no_capability():
    ports = [port["containerPort"] for port in pods(dns.objects(SETTINGS))["coredns"]["containers"][0]["ports"]]
    assert min(ports) > 1024
    assert corefile(SETTINGS).startswith(".:1053 {")


def test_other_names_are_asked_of_the_given_servers():
    assert "forward . 192.0.2.53\n" in corefile(SETTINGS)


def test_without_servers_nothing_is_forwarded():
    assert "forward" not in corefile(ALONE)


def test_it_reads_what_names_are_made_of_and_nothing_else():
    rules = named(dns.objects(SETTINGS), "ClusterRole", "modelwharf:coredns")["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"list", "watch"}
    assert {resource for rule in rules for resource in rule["resources"]} == {
        "services",
        "namespaces",
        "endpointslices",
    }


def test_all_pods_may_ask_and_only_monitoring_sees_the_figures():
    rules = named(dns.objects(SETTINGS), "NetworkPolicy", "coredns")["spec"]["ingress"]
    assert "from" not in rules[0] and {port["port"] for port in rules[0]["ports"]} == {1053}
    assert rules[1]["ports"] == [{"port": 9153, "protocol": "TCP"}]


def test_other_names_start_new_pods():
    def stamp(settings):
        template = named(dns.objects(settings), "Deployment", "coredns")["spec"]["template"]
        return template["metadata"]["annotations"]["modelwharf.io/configuration"]

    assert stamp(SETTINGS) != stamp(ALONE)


def test_it_does_not_ask_itself():
    assert pods(dns.objects(SETTINGS))["coredns"]["dnsPolicy"] == "Default"
