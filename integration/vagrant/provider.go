package vagrant

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// plug plugs the cable of a network into a machine, or unplugs it there.
func plug(ctx context.Context, machine, network string, in bool) error {
	paths, err := filepath.Glob(filepath.Join(".vagrant", "machines", machine, "*", "id"))
	if err != nil || len(paths) != 1 {
		return fmt.Errorf("%s is the machine of %d providers; run this where Vagrantfile is, with one", machine, len(paths))
	}
	id, err := os.ReadFile(paths[0])
	if err != nil {
		return err
	}
	switch provider := filepath.Base(filepath.Dir(paths[0])); provider {
	case "libvirt":
		return plugLibvirt(ctx, string(id), network, in)
	case "virtualbox":
		return plugVirtualBox(ctx, string(id), network, in)
	default:
		return fmt.Errorf("cables of %s cannot be unplugged; use libvirt or virtualbox", provider)
	}
}

func plugLibvirt(ctx context.Context, domain, network string, in bool) error {
	virsh := []string{"-c", cmp.Or(os.Getenv("LIBVIRT_DEFAULT_URI"), "qemu:///system")}
	list, err := output(ctx, "virsh", append(virsh, "domiflist", domain)...)
	if err != nil {
		return err
	}
	mac, err := libvirtMAC(string(list), network)
	if err != nil {
		return err
	}
	_, err = output(ctx, "virsh", append(virsh, "domif-setlink", domain, mac, map[bool]string{true: "up", false: "down"}[in])...)
	return err
}

// libvirtMAC finds the interface in a network in the table of `virsh domiflist`: interface, type, source, model, MAC.
func libvirtMAC(table, network string) (string, error) {
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) == 5 && f[2] == network {
			return f[4], nil
		}
	}
	return "", fmt.Errorf("the machine has no interface in the network %s", network)
}

func plugVirtualBox(ctx context.Context, id, network string, in bool) error {
	info, err := output(ctx, "VBoxManage", "showvminfo", id, "--machinereadable")
	if err != nil {
		return err
	}
	adapter, err := virtualBoxAdapter(string(info), network)
	if err != nil {
		return err
	}
	_, err = output(ctx, "VBoxManage", "controlvm", id, "setlinkstate"+adapter, map[bool]string{true: "on", false: "off"}[in])
	return err
}

var intnet = regexp.MustCompile(`(?m)^intnet(\d)="(.*)"\r?$`)

// virtualBoxAdapter finds the number of the adapter in an internal network.
func virtualBoxAdapter(info, network string) (string, error) {
	for _, found := range intnet.FindAllStringSubmatch(info, -1) {
		if found[2] == network {
			return found[1], nil
		}
	}
	return "", fmt.Errorf("the machine has no adapter in the network %s", network)
}
