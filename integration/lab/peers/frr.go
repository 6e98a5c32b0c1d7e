package peers

import "path/filepath"

// FRR's daemons talk to each other in one directory, keep early logs in another, and give up root; both directories are
// compiled in.
const (
	frrRun  = "/var/run/frr"
	frrTemp = "/var/tmp"
	frrUser = "frr"
)

// zebra is the daemon of FRR that writes routes, and that the others talk to.
const zebra = "zebra"

// frrDaemon runs a daemon of FRR with its settings.
func frrDaemon(n node, name, config string) daemon {
	file := name + ".conf"
	run := sealed{User: frrUser, Make: frrRun, Hide: frrTemp, Copy: filepath.Join(n.dir, file)}
	if name != zebra {
		run.Await = filepath.Join(frrRun, "zserv.api")
	}
	return daemon{
		name: name, config: map[string]string{file: config},
		argv: run.argv(n.exe, find(name), "--vty_port", "0", "--log", "stdout", "--log-level", "warnings", "--config_file", filepath.Join(frrRun, file)),
	}
}

// frrOSPF is ospfd's settings, with more lines for each tunnel. Hellos of a second bring a healed link back sooner; where
// BFD is used they do not matter for its loss.
func frrOSPF(n node, tunnel ...string) string {
	var t text
	t.line("hostname %s", n.name)
	t.line("router ospf")
	t.line(" ospf router-id %s", n.id)
	t.line("exit")
	t.line("interface %s", lanDevice)
	t.line(" ip ospf area 0")
	t.line(" ip ospf passive")
	t.line("exit")
	for _, p := range n.ports {
		t.line("interface %s", p.device)
		t.line(" ip ospf area 0")
		t.line(" ip ospf network point-to-point")
		t.line(" ip ospf cost %d", p.cost)
		for _, line := range tunnel {
			t.line(" %s", line)
		}
		t.line("exit")
	}
	return t.String()
}

// frrBFD is OSPF with BFD of 50 ms x 3, FRR's usual set-up for fast failover.
func frrBFD(n node) []daemon {
	var t text
	t.line("bfd")
	t.line(" profile fast")
	t.line("  transmit-interval 50")
	t.line("  receive-interval 50")
	t.line("  detect-multiplier 3")
	t.line(" exit")
	t.line("exit")
	return []daemon{
		frrDaemon(n, zebra, "hostname "+n.name+"\n"),
		frrDaemon(n, "bfdd", t.String()),
		frrDaemon(n, "ospfd", frrOSPF(n, "ip ospf hello-interval 1", "ip ospf dead-interval 4", "ip ospf bfd", "ip ospf bfd profile fast")),
	}
}

// frrHello is OSPF at its fastest without BFD.
func frrHello(n node) []daemon {
	return []daemon{
		frrDaemon(n, zebra, "hostname "+n.name+"\n"),
		frrDaemon(n, "ospfd", frrOSPF(n, "ip ospf dead-interval minimal hello-multiplier 10")),
	}
}
