// What the cluster tests ask from inside a pod. It prints what it finds and exits with 0, or says
// why it cannot on standard error and exits with 1.
//
//	probe serve ADDRESS        answers every HTTP request with the name of its host
//	probe resolve NAME         prints the addresses of a name
//	probe get URL              prints the answer to an HTTP request
//	probe api PATH             asks the API server, as in-cluster clients do
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const patience = 3 * time.Second

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("a command and its argument are needed"))
	}
	argument := os.Args[2]
	switch os.Args[1] {
	case "serve":
		serve(argument)
	case "resolve":
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupHost(ctx, argument)
		fail(err)
		fmt.Println(strings.Join(addresses, " "))
	case "get":
		get(http.DefaultTransport, argument, "")
	case "api":
		api(argument)
	default:
		fail(fmt.Errorf("%q is not a command", os.Args[1]))
	}
}

func serve(address string) {
	name, err := os.Hostname()
	fail(err)
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, name)
	})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		server.Shutdown(ctx)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fail(err)
	}
}

func api(path string) {
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	token, err := os.ReadFile(account + "token")
	fail(err)
	authority, err := os.ReadFile(account + "ca.crt")
	fail(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	get(transport, "https://kubernetes.default.svc"+path, string(token))
}

func get(transport http.RoundTripper, url, token string) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	fail(err)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Transport: transport, Timeout: patience}
	response, err := client.Do(request)
	fail(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	fail(err)
	fmt.Print(string(body))
	if response.StatusCode >= 400 {
		fail(fmt.Errorf("status %s", response.Status))
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
