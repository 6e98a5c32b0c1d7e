package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// life is what is done with the packages: a shell script, since what it tries
// are commands that administrators type.
//
//go:embed testdata/packages.sh
var life []byte

// The machine unpacks a Debian into its memory. Its init moves that to a file
// system that services can be given views of, which the first one is not.
const initScript = `#!/bin/sh
mount -t devtmpfs dev /dev
printf '\002up\n' >/dev/ttyS1
mount -t tmpfs -o mode=755,size=90% root /mnt
cp -a bin etc home lib* opt packages root sbin srv tmp usr var /mnt
mkdir /mnt/dev /mnt/proc /mnt/sys /mnt/run /mnt/mnt
depmod -b /mnt "$(uname -r)"
exec switch_root /mnt /lib/systemd/systemd
`

// The script runs when all that starts at boot has started, and then the
// machine is switched off.
const (
	lifeTarget  = "[Unit]\nRequires=multi-user.target life.service\n"
	lifeService = `[Unit]
After=multi-user.target
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/packages/life; printf "\\002finished %%s\\n" $?'
StandardOutput=file:/dev/ttyS1
StandardError=inherit
`
)

// lifeKernel is the series of the kernel of the Debian that rootfs.sh makes.
const lifeKernel = "6.1"

// lifeDrivers are the kernel's modules that the machine gets.
var lifeDrivers = []string{"arch", "crypto", "drivers/net", "lib", "net"}

// packages installs, upgrades, downgrades, removes and purges the .deb, and the
// .rpm by rpm, in a Debian with systemd.
func packages(ctx context.Context, o options) error {
	started := time.Now()
	root := filepath.Join(o.dir, "rootfs")
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	if err := needEmulator(ctx); err != nil {
		return err
	}
	kernels, err := getKernels(ctx, []string{lifeKernel}, o.dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		if err := script(ctx, nil, "deploy/box/rootfs.sh", root, "rpm"); err != nil {
			return err
		}
	}
	files := map[string]string{}
	for _, major := range []string{"1", "2"} {
		to := filepath.Join(o.dir, "packages")
		if err := script(ctx, []string{"GOARCH=amd64", "OUT=" + to, "VERSION=" + major + ".0.0"}, "deploy/package.sh"); err != nil {
			return err
		}
		files["packages/"+major+".deb"] = filepath.Join(to, "guywire_"+major+".0.0_amd64.deb")
		files["packages/"+major+".rpm"] = filepath.Join(to, "guywire-"+major+".0.0-1.x86_64.rpm")
	}
	fmt.Printf("kernel, Debian and packages are there after %s\n", time.Since(started).Round(time.Second))

	m := machine{
		kernel: kernels[0].image, initrd: filepath.Join(o.dir, "packages.cpio"), console: filepath.Join(o.dir, "packages.console"),
		memory: o.memory, cpus: o.cpus,
	}
	defer os.Remove(m.initrd)
	if err := packDebian(m.initrd, root, kernels[0], files); err != nil {
		return err
	}
	accels := accelerators(o.accel)
	for i, accel := range accels {
		fmt.Printf("=== kernel %s, QEMU with %s\n", kernels[0].version, accel)
		code, start := "", time.Now()
		limited, stop := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("the machine did not end within %s", o.limit))
		_, err := m.boot(limited, accel, func(line string) {
			if rest, ok := strings.CutPrefix(line, finished+" "); ok {
				code = rest
				return
			}
			fmt.Printf("%7.1f s  %s\n", time.Since(start).Seconds(), line)
		})
		stop()
		if errors.Is(err, errNoHello) && i+1 < len(accels) && ctx.Err() == nil {
			fmt.Println(err)
			continue
		}
		switch {
		case err != nil:
		case code == "":
			err = fmt.Errorf("the machine ended before the script; see %s", m.console)
		case code != "0":
			err = fmt.Errorf("FAIL: the script ended with %s", code)
		default:
			fmt.Printf("PASS packages, %s\n", time.Since(started).Round(time.Second))
		}
		return err
	}
	return errNoHello
}

// script runs one of the project's shell scripts.
func script(ctx context.Context, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "sh", args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// packDebian writes a Debian with the script, packages and modules.
func packDebian(to, root string, k kernelImage, files map[string]string) error {
	file, err := os.Create(to)
	if err != nil {
		return err
	}
	defer file.Close()
	a := newArchive(file)
	a.system(root)
	for _, dir := range lifeDrivers {
		a.tree(path.Join("usr/lib/modules", k.version, "kernel", dir), filepath.Join(k.modules.dir, "kernel", dir), func(string, fs.DirEntry) bool { return false })
	}
	for _, list := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		a.file(path.Join("usr/lib/modules", k.version, list), filepath.Join(k.modules.dir, list))
	}
	for name, from := range files {
		a.file(name, from)
	}
	a.device("dev/console", 0o600, 5, 1)
	a.bytes("packages/life", 0o755, life)
	a.bytes("init", 0o755, []byte(initScript))
	a.bytes("etc/systemd/system/life.service", 0o644, []byte(lifeService))
	a.bytes("etc/systemd/system/life.target", 0o644, []byte(lifeTarget))
	a.link("etc/systemd/system/default.target", "life.target")
	return errors.Join(a.close(), file.Close())
}

// system copies a root file system, with its links and modes, but for devices.
// All is root's.
func (a *archive) system(from string) {
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == from {
			return err
		}
		name, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch mode := info.Sys().(*syscall.Stat_t).Mode & 0o7777; {
		case d.IsDir():
			a.dir(name, mode)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			a.link(name, target)
		case d.Type().IsRegular():
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			a.entry(name, typeFile|mode, 0, 0, f, info.Size())
		}
		return a.err
	})
	if a.err == nil {
		a.err = err
	}
}
